"""Tests of what is known of array libraries, trees and containers."""
