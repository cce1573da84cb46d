"""Mathematical answers, compared by what they mean."""
