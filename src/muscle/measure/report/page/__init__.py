"""What the HTML page is made of: templates, style and scripts, and the Python that feeds them."""
