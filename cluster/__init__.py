"""The run: configuration, placement, the controller loop, supervision and tracking."""
