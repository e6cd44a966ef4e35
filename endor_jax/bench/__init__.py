"""Measurements that anyone can repeat: named workloads, and what they took beside what was promised."""
