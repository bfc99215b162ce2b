// The API reference: Swagger UI over /openapi.json, from files that the service itself serves.

SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
