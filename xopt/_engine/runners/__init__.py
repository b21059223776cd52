"""Runners: each runs a program over all leaves. A runner has no maths and no knowledge of rules."""
