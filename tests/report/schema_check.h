// Checks a JSON value against the part of JSON Schema draft-07 that schema/result.schema.json uses.
// An unknown keyword is an error, so that the schema cannot promise what is not checked.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace moe::test {

using Json = nlohmann::json;

inline bool has_type(const Json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "integer") return value.is_number_integer();
  return type == "number" && value.is_number();
}

/// Appends one line per violation.
inline void check_schema(const Json& value, const Json& schema, const std::string& path,
                         std::vector<std::string>& errors) {
  const auto complain = [&](const std::string& what) {
    errors.push_back(path + ": " + what + " (" + value.dump().substr(0, 60) + ")");
  };
  for (const auto& [keyword, rule] : schema.items()) {
    if (keyword == "type") {
      const Json types = rule.is_array() ? rule : Json::array({rule});
      bool any = false;
      for (const Json& type : types) any = any || has_type(value, type);
      if (!any) complain("is no " + rule.dump());
    } else if (keyword == "enum") {
      bool any = false;
      for (const Json& allowed : rule) any = any || allowed == value;
      if (!any) complain("is none of " + rule.dump());
    } else if (keyword == "const") {
      if (value != rule) complain("is not " + rule.dump());
    } else if (keyword == "minimum") {
      if (value.is_number() && !(value.get<double>() >= rule.get<double>())) complain("too small");
    } else if (keyword == "maximum") {
      if (value.is_number() && !(value.get<double>() <= rule.get<double>())) complain("too large");
    } else if (keyword == "required") {
      for (const Json& name : rule) {
        if (value.is_object() && !value.contains(name.get<std::string>())) {
          complain("has no " + name.dump());
        }
      }
    } else if (keyword == "properties") {
      for (const auto& [name, property] : rule.items()) {
        if (value.is_object() && value.contains(name)) {
          check_schema(value[name], property, path + "/" + name, errors);
        }
      }
    } else if (keyword == "additionalProperties") {
      if (!value.is_object()) continue;
      for (const auto& [name, item] : value.items()) {
        if (schema.contains("properties") && schema["properties"].contains(name)) continue;
        if (rule.is_object()) {
          check_schema(item, rule, path + "/" + name, errors);
        } else if (rule == false) {
          complain("has the unknown field " + name);
        }
      }
    } else if (keyword == "items") {
      for (std::size_t i = 0; value.is_array() && i < value.size(); ++i) {
        check_schema(value[i], rule, path + "/" + std::to_string(i), errors);
      }
    } else if (keyword != "description" && keyword != "title" && keyword != "$schema" &&
               keyword != "$id") {
      errors.push_back(path + ": the schema uses " + keyword + ", which is not checked");
    }
  }
}

/// "result", "compare", "history" or "tune".
inline Json read_schema(const std::string& name) {
  std::ifstream file(std::string(MOE_SOURCE_DIR) + "/schema/" + name + ".schema.json");
  return Json::parse(file);
}

/// All violations of the schema in the text; "" when there is none.
inline std::string schema_errors(const std::string& text, const std::string& schema = "result") {
  std::vector<std::string> errors;
  check_schema(Json::parse(text), read_schema(schema), "", errors);
  std::string all;
  for (const std::string& error : errors) all += error + "\n";
  return all;
}

}  // namespace moe::test
