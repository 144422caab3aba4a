"""From an allocation to a network whose outcome is known."""
