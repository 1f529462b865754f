"""Bamboo: how deep and how narrow should a transformer be, and how does the answer depend on the objective?"""

__version__ = "0.1.0"
