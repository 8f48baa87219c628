"""Files in buckets and on web servers: addresses, requests, and a bounded cache on this machine's disk."""
