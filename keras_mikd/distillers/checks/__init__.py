"""What a distiller looks at before the first step: networks, losses, data, first outputs."""
