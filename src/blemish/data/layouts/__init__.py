"""How pictures of good and bad parts lie on disk: data sets, folders and tables, recognised."""
