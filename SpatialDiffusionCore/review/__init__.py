"""A page to look at many registrations: a folder of pictures, a table and a viewer that opens without a server."""
