"""The fault detector graded as a model: how late it is, how often it is wrong, what that costs in decisions.

Everything runs on a simulated clock: nothing sleeps, and a given seed gives the same numbers on every machine.
"""
