"""What the examples share: options, data, training, deployment, the table and the plot."""
