"""The methods, by what they do: average, cut, mix hidden layers or the output, choose one of several."""
