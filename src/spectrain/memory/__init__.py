"""What training needs in memory: measured while it runs, and planned before."""
