"""The client that sends S3 requests through obstore: what it cannot do, by s3fs."""
