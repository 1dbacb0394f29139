"""The client that sends S3 requests through s3fs."""
