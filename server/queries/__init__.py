"""What callers read: observations, predictions and stations, page by page."""
