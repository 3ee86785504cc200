"""The Open Inference Protocol, over HTTP and gRPC: two codecs of the same requests and answers."""
