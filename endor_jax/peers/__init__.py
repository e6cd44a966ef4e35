"""Peers: the other processes of one run, seen by each of them: how they meet, live, fall behind and end."""
