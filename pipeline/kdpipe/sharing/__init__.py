"""Stores at a URL: plain files on any web server, in a bucket, on a host by ssh, or in a folder."""
