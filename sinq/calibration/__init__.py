"""What is learned about a model from text: data, sites, statistics, collection, gradients."""
