"""Models of ours in the clothes of other libraries; each module needs that library, and is imported on use only."""
