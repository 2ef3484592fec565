"""Where pictures come from: folders, layouts with labels and masks, and splits of them."""
