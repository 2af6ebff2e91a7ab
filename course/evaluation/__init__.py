"""Measuring: what a model costs, what its pictures show, and the page that says so."""
