"""Where pictures come from: folders, layouts with labels and masks, and the splits drawn from them."""
