"""What EC2 cost when this package was made: Linux, on demand. AWS's own answer, where there is one, goes before.

From tables published by third parties that agree with one another (none is AWS's own page). p2 and p3 have their last
prices. Not in them: a public IPv4 address, $0.005 per hour as long as the machine runs.
"""

from __future__ import annotations

OF = "2026-11"

REGIONS = frozenset({"us-east-1", "us-east-2", "us-west-2"})
"""Where these prices hold; elsewhere the price is not known here and is said to be so."""

USD_PER_HOUR = {
    "p2.xlarge": 0.900,
    "p3.2xlarge": 3.06,
    "g4dn.xlarge": 0.526,
    "g4dn.2xlarge": 0.752,
    "g4dn.4xlarge": 1.204,
    "g4dn.8xlarge": 2.176,
    "g4dn.12xlarge": 3.912,
    "g4dn.16xlarge": 4.352,
    "g4dn.metal": 7.824,
    "g5.xlarge": 1.006,
    "g5.2xlarge": 1.212,
    "g5.4xlarge": 1.624,
    "g5.8xlarge": 2.448,
    "g5.12xlarge": 5.672,
    "g5.16xlarge": 4.096,
    "g5.24xlarge": 8.144,
    "g5.48xlarge": 16.288,
    "g6.xlarge": 0.8048,
    "g6.2xlarge": 0.9776,
    "g6.4xlarge": 1.3232,
    "g6.8xlarge": 2.0144,
    "g6.12xlarge": 4.6016,
    "g6.16xlarge": 3.3968,
    "g6.24xlarge": 6.6752,
    "g6.48xlarge": 13.3504,
    "g6e.xlarge": 1.861,
    "g6e.2xlarge": 2.24208,
    "g6e.4xlarge": 3.00424,
    "g6e.8xlarge": 4.52856,
    "g6e.12xlarge": 10.49264,
    "g6e.16xlarge": 7.57719,
    "g6e.24xlarge": 15.06559,
    "g6e.48xlarge": 30.13118,
}

DISK_USD_PER_GB_MONTH = {"gp3": 0.08, "gp2": 0.10}
