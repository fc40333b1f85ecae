"""The leaderboard as static pages: the table, a page for each submission, and what both share."""
