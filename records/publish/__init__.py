"""What is made from judged logs: pages, pictures, leaderboards, reports, entries."""
