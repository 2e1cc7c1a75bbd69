"""Kernel paths: BPF programs and pipes that move bytes without user space.

A path is used only where a probe has moved bytes through it and found them whole (`paths`).
"""
