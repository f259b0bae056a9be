"""The Fieldpost station: keeps every observation on its own disk until the server has promised to hold it."""
