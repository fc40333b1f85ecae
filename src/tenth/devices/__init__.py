"""What is known of devices, one TOML file each in ``profiles/``, and of the machine that we run on.

From it follow speed, energy and battery life as intervals.
"""
