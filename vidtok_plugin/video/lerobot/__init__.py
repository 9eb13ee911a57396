"""Datasets of robot video in LeRobot's format, v2.0 to v3.0, read with pyarrow and PyAV.

v3.0 keeps several episodes in each mp4 and parquet file, v2.x one. Both keep the frame at time i with the action taken
at i, and `next.*` with what that action led to.
"""
