"""Routing: a small network answers, or passes the question on to a large one."""
