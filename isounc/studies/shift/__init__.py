"""Shift: do gradient norms tell inputs of another distribution, and how do other scores?"""
