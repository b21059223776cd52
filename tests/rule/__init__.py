"""Tests of what a rule or a component may declare, and of what is known of other libraries' rules."""
