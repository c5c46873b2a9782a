// Prints what vmihailenco/msgpack makes of commands.json, in hex: with integers, and with the float64s that
// encoding/json makes of every number.
package main

import (
	"encoding/hex"
	"encoding/json"
	"os"

	"github.com/vmihailenco/msgpack/v5"
)

func integers(value any) any {
	switch given := value.(type) {
	case float64:
		return int64(given)
	case map[string]any:
		for key, item := range given {
			given[key] = integers(item)
		}
	}
	return value
}

func encoded(commands []any) []string {
	var found []string
	for _, command := range commands {
		bytes, err := msgpack.Marshal(command)
		if err != nil {
			panic(err)
		}
		found = append(found, hex.EncodeToString(bytes))
	}
	return found
}

func main() {
	file, err := os.ReadFile("commands.json")
	if err != nil {
		panic(err)
	}
	var commands []any
	if err := json.Unmarshal(file, &commands); err != nil {
		panic(err)
	}
	floats := encoded(commands)
	for i := range commands {
		commands[i] = integers(commands[i])
	}
	json.NewEncoder(os.Stdout).Encode(map[string][]string{"go, float64": floats, "go, int64": encoded(commands)})
}
