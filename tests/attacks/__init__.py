"""Hostile submissions. None may gain a point, hang, leave something behind, or harm a neighbour."""
