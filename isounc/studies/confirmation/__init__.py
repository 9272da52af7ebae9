"""Confirmation: does the logit-scaled estimate hold on data that were not used to find it?"""
