"""Where images, masks and tags come from: sources, tag lists, incremental protocols, generated scenes."""
