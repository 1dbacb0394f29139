"""Reading and writing chunks: from a plan to requests, decoded chunks and the user's memory."""
