"""Methods side by side on a user's own teacher, student and data."""
