"""Arrays that are not numbers: what a function written once against the array API can also be evaluated with."""
