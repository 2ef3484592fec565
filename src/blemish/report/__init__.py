"""Results for people: heatmap overlays, figures, and a report as one offline HTML file."""
