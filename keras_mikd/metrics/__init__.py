"""Read-outs in nats."""
