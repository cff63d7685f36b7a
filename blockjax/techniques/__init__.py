"""Techniques: functions Block -> Block, applied between `Block(...)` and the driver."""
