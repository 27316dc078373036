"""What several losses share: schedules, grids of classes, projections, similarities, memories."""
