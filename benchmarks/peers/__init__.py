"""Other serving libraries, measured as a user would run them; `table` lists them."""
