"""Tests of what a rule or a link may declare, and of what is known of other libraries' rules."""
