"""Film reviews of one sentence that people rated: data and programs of the demo and experiment."""
