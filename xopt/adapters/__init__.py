"""Other frameworks: each adapter imports its library when it is imported itself."""
